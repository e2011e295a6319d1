from .open_source import open_source as open_source
from .source import Batch as Batch
from .source import ImageSource as ImageSource
