"""timm's networks that tests try as backbones: of each kind a small one."""

EVERY_DAY = ["mobilenetv4_conv_small_035", "vit_tiny_patch16_224", "convnext_atto"]
NIGHTLY = [
    "resnet10t", "efficientnet_b0", "repvit_m0_9", "regnety_002", "vit_wee_patch16_reg1_gap_256",
    "swin_tiny_patch4_window7_224", "edgenext_xx_small",
]  # fmt: skip
