"""Will a stage fit, how fast is it: compiled for TPUs that are not there."""
