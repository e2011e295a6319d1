from .benchmark import bench as bench
