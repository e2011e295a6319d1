"""From pixels to a network's input: the description, its text, and where it comes from."""

from cbam_deploy.preprocessing.description import IMAGENET_MEAN as IMAGENET_MEAN
from cbam_deploy.preprocessing.description import IMAGENET_STD as IMAGENET_STD
from cbam_deploy.preprocessing.description import Preprocessing as Preprocessing
