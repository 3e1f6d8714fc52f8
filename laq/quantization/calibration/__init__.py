"""What a layer is given by the calibration images: patches, and the covariances of a layer's inputs."""
