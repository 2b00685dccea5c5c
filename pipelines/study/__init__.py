"""What a study asks for and what of it is done."""
