"""Training: the update and what it is made of; knows no folder and no run."""
