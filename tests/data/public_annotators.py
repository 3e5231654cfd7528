"""A segmenter and a captioner of next to no size with random weights, in the folders that people have them in."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "red", "house", "tree", "bird")


def save_segmenter(folder: Path) -> Path:
    """A SAM that is sure of the masks that it finds: their quality is said to be 1, and their edges are sharp."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_channels=32, image_size=64, patch_size=16,
        mlp_dim=16, window_size=2, global_attn_indexes=[0], num_pos_feats=16,
    )  # fmt: skip
    prompt = dict(hidden_size=32, image_size=64, patch_size=16, image_embedding_size=4, mask_input_channels=4)
    decoder = dict(hidden_size=32, mlp_dim=16, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16)
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
        head = model.mask_decoder.iou_prediction_head.proj_out
        head.weight.zero_()
        head.bias.fill_(1)
        for network in model.mask_decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(100)
    model.save_pretrained(folder)
    processor = SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    SamProcessor(processor).save_pretrained(folder)
    return folder


def save_captioner(folder: Path) -> Path:
    """A BLIP that says a few words out of five."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    text = dict(
        vocab_size=len(WORDS), hidden_size=16, encoder_hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, projection_dim=8, bos_token_id=5, sep_token_id=3, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8,
        image_size=32, patch_size=16,
    )  # fmt: skip
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.text_decoder.cls.predictions.bias[:7] = -100  # words alone, and so to the limit
    model.save_pretrained(folder)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]", "[ENC]"])
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
