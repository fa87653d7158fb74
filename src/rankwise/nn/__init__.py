"""The mathematics: packed batches, frozen backbones, the bank of adapters. No files, no clocks.

To be read in this order: `packing`, `dropout`, `linear`, `backbone`, `layout`, `attention`,
`activation`, `gpt2`, `llama`, `lora`, `classifier`, `adamw`.
"""
