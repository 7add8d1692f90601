"""What Great Expectations is asked of data, and the pages it draws."""
