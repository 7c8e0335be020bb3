"""The sprite world: the embedded dataset of captioned clips, and the oracle that judges clips by looking."""

from tokvid.data.sprites.agreement import Agreement, agreement
from tokvid.data.sprites.backgrounds import BACKGROUNDS
from tokvid.data.sprites.captions import CaptionFacts, parse_caption, write_caption
from tokvid.data.sprites.export import as_dataset, write_folder
from tokvid.data.sprites.motions import MOTIONS, combinations, is_held_out
from tokvid.data.sprites.oracle import Oracle, SeenSprite, Sight
from tokvid.data.sprites.scene import Scene, SpritePlacement
from tokvid.data.sprites.sheet import SPRITES
from tokvid.data.sprites.verdicts import JudgedClips, judge_clips
from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig

__all__ = [
    "BACKGROUNDS",
    "MOTIONS",
    "SPRITES",
    "Agreement",
    "CaptionFacts",
    "JudgedClips",
    "Oracle",
    "Scene",
    "SeenSprite",
    "Sight",
    "SpritePlacement",
    "SpriteWorld",
    "SpriteWorldConfig",
    "agreement",
    "as_dataset",
    "combinations",
    "is_held_out",
    "judge_clips",
    "parse_caption",
    "write_caption",
    "write_folder",
]
