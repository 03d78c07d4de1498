"""What DIRECT's training lacks, for any model."""
