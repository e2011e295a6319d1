# cbam-deploy beside NVIDIA's TensorRT, with the plugin library:
#   docker build -t cbam-deploy .
#   docker run --rm --gpus all -v "$PWD:/work" cbam-deploy build-engine model.onnx -o model.engine
# TENSORRT is a tag of NVIDIA's image with TensorRT 10.0 to 11.x; an engine runs in that version alone.
ARG TENSORRT=25.10
FROM nvcr.io/nvidia/tensorrt:${TENSORRT}-py3

COPY . /src
# Its own environment sees the image's TensorRT; virtualenv needs nothing of the system's Python.
RUN python3 -m pip install --no-cache-dir virtualenv==21.15.11 \
    && python3 -m virtualenv --system-site-packages /opt/cbam-deploy \
    && /opt/cbam-deploy/bin/pip install --no-cache-dir \
        --constraint /src/constraints.txt '/src[demo,kernels]' \
    && /opt/cbam-deploy/bin/cbam-deploy build-plugin -o "$(/opt/cbam-deploy/bin/python -c \
        'from cbam_deploy.plugins.native_library import NATIVE; print(NATIVE)')" \
    && /opt/cbam-deploy/bin/cbam-deploy doctor \
    && rm -rf /src

# What is compiled and cached later, also for a user without a home (docker run --user).
ENV XDG_CACHE_HOME=/tmp/cache PATH=/opt/cbam-deploy/bin:$PATH
WORKDIR /work
ENTRYPOINT ["cbam-deploy"]
CMD ["--help"]
