#!/usr/bin/env bash
# transformers 5.23.0: TimesFmModel and CanineModel return NaN in double precision for inputs with finite outputs in single precision.
#
# Expected: .double() can only make a network more accurate. Observed: both networks build masks of torch.finfo(dtype).min, in a
# float64 network that of float64, and add them in a float32 computation. A fully masked row then becomes -inf and its softmax NaN,
# so a check of such a network in double precision encounters NaN. Exits 1 if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
"$folder/env/bin/python" - <<'PY'
import sys

import torch
import transformers

small = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
timesfm = transformers.TimesFmConfig(**small, patch_length=4, context_length=16, horizon_length=4, head_dim=4, freq_size=2)
canine = transformers.CanineConfig(
    **small, bos_token_id=1, eos_token_id=2, num_hash_functions=2, num_hash_buckets=16, local_transformer_stride=4,
    upsampling_kernel_size=2, max_position_embeddings=40,
)
torch.manual_seed(0)
zeros = torch.zeros(2, 16, dtype=torch.long)
cases = {
    "TimesFmModel": (transformers.TimesFmModel(timesfm), lambda dtype: (torch.randn(2, 16, dtype=dtype), zeros, zeros[:, :1])),
    "CanineModel": (transformers.CanineModel(canine), lambda dtype: (torch.arange(32).reshape(2, 16),)),
}
print("transformers", transformers.__version__, "torch", torch.__version__)
seen = []
for name, (model, inputs) in cases.items():
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            output = model.eval().to(dtype)(*inputs(dtype)).last_hidden_state
        seen.append(bool(output.isfinite().all()))
        print(f"{name} in {dtype}: {'finite' if seen[-1] else 'NaN'}")
sys.exit(seen != [True, False, True, False])
PY
