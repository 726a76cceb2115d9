"""Up-Down written the obvious way in PyTorch, for the scripts that time it.

Two LSTM cells and one attention a word, as `sparsecap_jax.models.up_down`; image features are
projected once per image and repeated for its captions.
"""

import torch
from torch import nn
from torch.nn import functional


class UpDown(nn.Module):
    """Teacher forcing of Up-Down; `config` as by `paper_config`."""

    def __init__(self, config):
        super().__init__()
        rnn, words = config["rnn_size"], config["input_encoding_size"]
        self.embed = nn.Embedding(config["vocab_size"], words)
        self.fc_embed = nn.Linear(config["fc_feat_size"], rnn)
        self.region_embed = nn.Linear(config["att_feat_size"], rnn)
        self.keys = nn.Linear(rnn, config["att_hid_size"])
        self.query = nn.Linear(rnn, config["att_hid_size"])
        self.score = nn.Linear(config["att_hid_size"], 1)
        self.attention_lstm = nn.LSTMCell(2 * rnn + words, rnn)
        self.language_lstm = nn.LSTMCell(2 * rnn, rnn)
        self.logit = nn.Linear(rnn, config["vocab_size"])
        self.drop = nn.Dropout(config["drop_prob_lm"])

    def forward(self, att_feats, att_masks, fc_feats, seqs):
        """Log-probs `[N, T, V]` after each token of `seqs [N, T]`; N is a multiple of the images.

        `att_feats [B, R, D]`, `att_masks [B, R]`, `fc_feats [B, D]`.
        """
        repeats = len(seqs) // len(fc_feats)
        fc = self._embedded(self.fc_embed, fc_feats)
        regions = self._embedded(self.region_embed, att_feats) * att_masks[..., None]
        sides = fc, regions, self.keys(regions), att_masks
        fc, regions, keys, masks = (side.repeat_interleave(repeats, 0) for side in sides)
        words = self.drop(functional.relu(self.embed(seqs)))
        attending = speaking = (torch.zeros_like(fc), torch.zeros_like(fc))
        outputs = []
        for word in words.unbind(1):
            attending = self.attention_lstm(torch.cat([speaking[0], fc, word], 1), attending)
            hidden = torch.tanh(keys + self.query(attending[0])[:, None])
            weights = torch.softmax(self.score(hidden).squeeze(-1), 1) * masks
            weights = weights / weights.sum(1, keepdim=True)
            attended = torch.bmm(weights[:, None], regions).squeeze(1)
            speaking = self.language_lstm(torch.cat([attended, attending[0]], 1), speaking)
            outputs.append(speaking[0])
        logits = self.logit(self.drop(torch.stack(outputs, 1)))
        return functional.log_softmax(logits.float(), -1)

    def _embedded(self, layer, inputs):
        return self.drop(functional.relu(layer(inputs)))


def torch_state(params):
    """The state dict for the params of `sparsecap_jax.models.up_down` with one logit layer."""
    state = {"embed.weight": params["embed"]["embedding"]}
    linears = {
        "fc_embed": params["fc_embed"],
        "region_embed": params["region_embed"],
        "keys": params["ctx2att"],
        "query": params["attention"]["h2att"],
        "score": params["attention"]["alpha"],
        "logit": params["logit_0"],
    }
    for name, layer in linears.items():
        state |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    for name, cell in (("attention", "att_lstm"), ("language", "lang_lstm")):
        for part in ("ih", "hh"):
            state[f"{name}_lstm.weight_{part}"] = params[cell][f"kernel_{part}"].T
            state[f"{name}_lstm.bias_{part}"] = params[cell][f"bias_{part}"]
    return {name: torch.tensor(value) for name, value in state.items()}
