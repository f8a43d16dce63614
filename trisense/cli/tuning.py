"""What is tried before a model is trained: `train lr-find`."""

from __future__ import annotations

from pathlib import Path

import click

from trisense.cli.common import need, seed_option
from trisense.cli.making import out_option, skip_bad_option, train, train_device_option


@train.command("lr-find")
@click.argument("stage")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, metavar="FILE", help="What it learns from: a file, folder, pattern or address.")
@click.option("--media", type=click.Path(path_type=Path), metavar="FOLDER", help="Or zip, of its pictures.")
@skip_bad_option
@out_option
@click.option("--after", type=click.Path(path_type=Path), metavar="FOLDER", help="Trained parts to begin with.")
@click.option("--steps", type=int, default=100, show_default=True, help="Rates to try; more make it surer.")
@click.option("--start-lr", type=float, default=1e-7, show_default=True, help="The lowest rate.")
@click.option("--end-lr", type=float, default=10.0, show_default=True, help="The highest; ends where it diverges.")
@seed_option
@train_device_option
def lr_find(
    stage: str,
    recipe: str,
    overrides: tuple[str, ...],
    data: str,
    media: Path | None,
    skip_bad: int,
    out: Path,
    after: Path | None,
    steps: int,
    start_lr: float,
    end_lr: float,
    seed: int,
    device: str,
) -> None:
    """Find the learning rates at which STAGE of RECIPE learns: train a few steps at rates that grow, and look.

    Writes OUT/STAGE/lr_find.png and lr_find.json and suggests a rate; nothing that is trained is kept, and a run in the
    same folder is left as it is.

    \b
    trisense train lr-find align jnana --data captions_train2017.json --media train2017 --out runs/jnana
    """
    need("train", "torch", "transformers", "peft")
    from trisense.recipe import read
    from trisense.train.lr_find import range_test, save_range_test
    from trisense.train.stages import get_ready

    chosen = read(recipe, overrides)
    options = {"media": media, "after": after, "device": device, "seed": seed, "skip_bad": skip_bad}
    ready = get_ready(chosen, stage, data, out, **options)
    rates = {"start_lr": start_lr, "end_lr": end_lr, "steps": steps}
    test = range_test(ready.learner, ready.batch_at, chosen.stages[stage], device=device, seed=seed, **rates)
    numbers, picture = save_range_test(test, f"{recipe} {stage}: learning rate range test", out / stage)
    if test.steepest is None or test.tenth is None:
        click.echo("suggestion: none; the loss did not fall beyond its noise; try more --steps or a larger batch_size")
    else:
        click.echo(f"suggestion: {test.steepest:.1e} (steepest descent), {test.tenth:.1e} (a tenth of the lowest's)")
        click.echo(f"to use it: stages.{stage}.lr={test.steepest:.1e}")
    click.echo(f"wrote {picture} and {numbers}")
