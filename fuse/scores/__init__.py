"""What the scores of a run are made of, and how their shares and corrections are fitted."""
