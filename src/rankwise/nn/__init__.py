"""The mathematics: packed batches, frozen backbones, the bank of adapters. No files, no clocks.

Read in this order::

    batch  linear  backbone  layout  attention  dropout     the frozen model on a packed batch
    bank                                                    what is trained
    ragged/  batch  masks  lora  step                       one training step on a CPU
    static/  batch  masks  lora  step  graphs               the same on a CUDA device
    classifier  inference                                   logits and losses

`batch`, `masks` and `step` hold what `ragged` and `static` share. A file of `ragged` and the file of
the same name in `static` do the same job.
"""
