"""OpenVINO as the engine of a model's networks: ``Pipeline.optimize(engine="openvino")``.

- ``library``: the package, the device, and in which number formats that computes;
- ``store``: converted networks on disk;
- ``converted``: a network as OpenVINO's model, for as long as its weights and layers are the same;
- ``parts``: what stands in the places of the U-Net, the VAE's halves and the text encoders' layers.
"""
