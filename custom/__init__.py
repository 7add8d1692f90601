"""Your own models and checkpoints; DVC watches this folder, so a change here makes what was trained from it stale."""
