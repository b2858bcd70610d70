"""TRL's GRPOTrainer, with what a continued adapter and gated rewards need."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.grpo_rewards import Rewards, filled
from training.rollout import Grammars, generating, merged
from training.shared_prefix import read_answers

BUFFER_FILE = "recent.json"
"""In a checkpoint: the buffer of recent explanations."""


def policy_trainer() -> type[Any]:
    """GRPOTrainer with what a continued adapter and gated rewards need; all of the algorithm is TRL's."""
    from trl import GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

    class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
        """See `policy_trainer`."""

        def __init__(self, rewards: Rewards, **arguments: Any) -> None:  # noqa: ANN401
            super().__init__(**arguments)
            self._rewards = rewards
            self._grammars = Grammars(self.processing_class, self.model.config.vocab_size)
            self._answered: list[dict[str, Any]] = []
            """Parts of the step at hand."""
            self.asked: list[int] = []
            """Rows of the prompts that are answered now, for a rollout of a server too."""
            # TRL keeps the adapter as it was beside the policy, under the name `ref`. With it in a checkpoint, as a
            # subdirectory, transformers loads subdirectories alone when a run goes on, and the policy is lost; it is
            # made anew from the same adapter anyway, as `claim` makes sure.
            self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=["default"])

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's, by the same dice each time, and without a trace in those of the training."""
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            self._rewards.evaluating = True
            try:
                with torch.random.fork_rng(devices):
                    torch.manual_seed(self.args.seed)
                    return super().evaluate(*args, **kwargs)
            finally:
                self._rewards.evaluating = False

        def schema(self, row: int) -> dict[str, Any]:
            """What an answer to a row is held to, as JSON schema."""
            return self._rewards.schema(row).model_json_schema()

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's, by merged weights: half the kernels a token, and the form in which a CPU serves the policy.

            Answers are held to the schema as they are by the server: a small model counts badly, and a list of nineteen
            tags where twenty were asked for would earn nothing. The gradient is that of the model's own probabilities.
            """
            policy = self.accelerator.unwrap_model(self.model)
            held = self._grammars.processor([self.schema(row) for row in self.asked])
            with merged(policy), generating(policy, held):
                return super()._generate_single_turn(*args, **kwargs)

        def _prepare_inputs(self, generation_batch: Any) -> Any:  # noqa: ANN401
            """TRL's, but not shuffled: the answers of a group meet the model together: one prompt to read."""
            if not self.model.training:
                return super()._prepare_inputs(generation_batch)
            parts = self.args.steps_per_generation
            if not self._answered or self._step % parts == 0:
                self._answered = split_tensor_dict(self._generate_and_score_completions(generation_batch), parts)
            return self._answered[self._step % parts]

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,  # noqa: ANN401
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            **others: object,
        ) -> tuple[Tensor, Tensor, None]:
            """TRL's, but each prompt is read once for all answers to it."""
            size = batch_size or len(input_ids)
            with self.accelerator.autocast():
                parts = [
                    read_answers(model, ids, mask, logits_to_keep)
                    for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
                ]
            logps, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
            return logps, entropies, None

        def _generate_and_score_completions(self, inputs: Any) -> Any:  # noqa: ANN401
            """TRL's, less the dead groups: those whose answers all have the same reward.

            Their advantages are 0 by TRL's own sum, but its KL term would still pull them to the reference, and its
            normaliser count them. TRL has no setting for that; what it has is `tool_mask`, which its loss multiplies
            with each token's part: 0 takes a dead group out, and where it is all/live for the others, the normaliser
            (which counts answers, dead or not) becomes that of the live ones.
            """
            self.asked = [one["row"] for one in inputs]
            made = super()._generate_and_score_completions(inputs)
            if not self.model.training:
                return made
            if "sampling_per_token_logps" in made:
                # Of the server, whose arithmetic is another one: TRL's clipped ratio makes up for the difference. A
                # server tells them as they are at temperature 1, which every recipe has.
                made["old_per_token_logps"] = made["sampling_per_token_logps"]
            live = (made["advantages"].view(-1, self.num_generations).abs() > 1e-6).any(dim=1).float()
            self._metrics["train"]["dead_groups"].append(1.0 - live.mean().item())
            weight = live / live.mean().clamp(min=1e-6)
            shape = made["completion_mask"].shape
            made["tool_mask"] = weight.repeat_interleave(self.num_generations)[:, None].expand(shape).contiguous()
            return made

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's; of answers in dead groups alone it is 0, without a pass through the model and without a KL.

            No gradient is made where a whole step is dead, so that its momentum doesn't move the policy either.
            """
            if "tool_mask" in inputs and not inputs["tool_mask"].any():
                return torch.zeros((), device=self.args.device, requires_grad=True)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
            """The buffer of explanations first: a checkpoint is whole when TRL's part is."""
            if self._rewards.recent is not None:
                checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                checkpoint.mkdir(parents=True, exist_ok=True)
                (checkpoint / BUFFER_FILE).write_text(json.dumps(self._rewards.recent.texts))
            super()._save_checkpoint(model, trial)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self._rewards.recent is not None:
                texts = json.loads((Path(resume_from_checkpoint) / BUFFER_FILE).read_text())
                self._rewards.recent = filled(texts)

    return PolicyTrainer
