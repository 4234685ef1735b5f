"""What is measured after a stage."""
