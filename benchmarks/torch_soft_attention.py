"""Soft-Attention written the obvious way in PyTorch, for the scripts that time it.

The PyTorch reference has no such model. One LSTM cell and one attention a step; regions are
repeated for each caption, as the reference's models do.
"""

import torch
from torch import nn
from torch.nn import functional

NEGATIVE = -1e9


class SoftAttention(nn.Module):
    """The LSTM form of `sparsecap_jax.models.soft_attention`; `config` as by `paper_config`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        features, rnn = config["att_feat_size"], config["rnn_size"]
        words, hidden = config["input_encoding_size"], config["att_hid_size"]
        self.embed = nn.Embedding(config["vocab_size"], words)
        self.init_state = nn.Linear(features, rnn, bias=False)
        self.keys = nn.Linear(features, hidden, bias=False)
        self.values = nn.Linear(features, hidden, bias=False)
        self.query = nn.Linear(rnn, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.lstm = nn.LSTMCell(words + hidden, rnn)
        self.logit = nn.Linear(rnn, config["vocab_size"])
        self.drop = nn.Dropout(config["drop_prob_lm"])
        self.drop_weights = nn.Dropout(config["drop_prob_att"])

    def start(self, fc_feats, att_feats, att_masks, repeats):
        """The image side and the first state, each repeated for all captions of an image."""
        sides = self.keys(att_feats), self.values(att_feats), att_masks, self.init_state(fc_feats)
        keys, values, masks, hidden = (x.repeat_interleave(repeats, 0) for x in sides)
        attended = values.new_zeros(len(values), values.shape[-1])
        return (keys, values, masks), (hidden, torch.zeros_like(hidden), attended)

    def step(self, tokens, image, state):
        """Log-probs `[N, V]` after `tokens [N]`, and the new state."""
        (keys, values, masks), (hidden, cell, attended) = image, state
        inputs = torch.cat([self.drop(self.embed(tokens)), self.drop(attended)], dim=-1)
        hidden, cell = self.lstm(inputs, (hidden, cell))
        output = self.drop(hidden)
        scores = self.score(torch.tanh(keys + self.query(output)[:, None])).squeeze(-1)
        weights = torch.softmax(scores.masked_fill(masks == 0, NEGATIVE), dim=-1)
        attended = torch.bmm(self.drop_weights(weights)[:, None], values).squeeze(1)
        log_probs = functional.log_softmax(self.logit(output), dim=-1)
        return log_probs, (hidden, cell, attended)

    def forward(self, att_feats, att_masks, fc_feats, seqs=None, mode="forward", **unused):
        """Teacher forcing, `[N, T, V]`; or, with mode "sample", greedy captions `[B, T]`."""
        if mode == "sample":
            return self.greedy(fc_feats, att_feats, att_masks)
        image, state = self.start(fc_feats, att_feats, att_masks, len(seqs) // len(fc_feats))
        outputs = []
        for tokens in seqs.unbind(1):
            log_probs, state = self.step(tokens, image, state)
            outputs.append(log_probs)
        return torch.stack(outputs, dim=1)

    def greedy(self, fc_feats, att_feats, att_masks):
        """The most probable token at each place, until all captions have ended."""
        image, state = self.start(fc_feats, att_feats, att_masks, 1)
        tokens = fc_feats.new_full((len(fc_feats),), self.config["bos_token_id"], dtype=torch.long)
        ended, captions = torch.zeros_like(tokens, dtype=torch.bool), []
        for _ in range(self.config["max_seq_length"]):
            log_probs, state = self.step(tokens, image, state)
            tokens = log_probs.argmax(dim=-1).masked_fill(ended, self.config["pad_token_id"])
            captions.append(tokens)
            ended |= tokens == self.config["eos_token_id"]
            if ended.all():
                break
        return torch.stack(captions, dim=1)
