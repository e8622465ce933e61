"""A study of generated pictures: forgetting against drift where both are known exactly."""
