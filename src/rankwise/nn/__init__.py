"""The mathematics: packed streams, frozen trunks, the bank of adapters. No files, no clocks.

To be read in this order: `packing`, `dropout`, `linear`, `trunk`, `layout`, `attention`,
`activation`, `gpt2`, `llama`, `lora`, `classifier`, `adamw`.
"""
