"""Results in the forms in which others collect them: DIRECT's model zoo, and submissions to challenges."""
