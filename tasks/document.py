"""JSON files of one kind each, written in one go."""

from pathlib import Path
from typing import ClassVar, Self

from distillery.config import Config
from distillery.errors import UserError


class Document(Config):
    """The content of a JSON file.

    Attributes:
        made_by: the command that makes the file.
    """

    made_by: ClassVar[str] = "python -m flows run"

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads the file.

        Raises:
            UserError: where it is missing, or is not of this kind.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file} is missing; run `{cls.made_by}` first") from None
        except ValueError as error:
            raise UserError(
                f"{file} is damaged or of another version; delete it and run `{cls.made_by}` again ({error})"
            ) from None

    def write(self, file: Path) -> None:
        """Writes it beside and renames it, so that a kill leaves the old file or the new one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.new")
        beside.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        beside.replace(file)
