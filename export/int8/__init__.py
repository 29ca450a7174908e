"""From a network and calibration pictures to int8 graphs."""
