"""What is fitted in closed form: no gradient descent, seconds."""
