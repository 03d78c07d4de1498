"""What a benchmark compares: specification, configurations, data and initial weights."""
