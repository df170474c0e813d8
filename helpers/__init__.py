import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # when it is imported it hints at the `kernels` package
