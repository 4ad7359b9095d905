"""`memserve convert`: a Hugging Face checkpoint becomes a sharded Orbax one."""

import click

from memserve_jax.model.convert import convert


@click.command()
@click.argument("hf_dir")
@click.argument("out")
def command(hf_dir: str, out: str) -> None:
    """Convert the model directory HF_DIR into OUT, which `--model` takes as well."""
    convert(hf_dir, out)
    click.echo(out)
