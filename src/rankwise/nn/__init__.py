"""The math: packed batches, frozen backbones, and the bank of adapters. No file I/O, no timing.

Reading order::

    batch  linear  backbone  layout  attention  dropout     the frozen model on a packed batch
    bank                                                    the trained parameters
    ragged/  batch  masks  lora  step                       one training step on a CPU
    static/  batch  masks  lora  step  graphs               the same on a CUDA device
    classifier  inference                                   logits and losses

`batch`, `masks` and `step` hold the code that `ragged` and `static` share. Modules of the same name in
`ragged` and `static` are counterparts.
"""
