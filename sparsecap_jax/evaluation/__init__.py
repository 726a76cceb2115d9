"""Caption metrics, reports and pictures.

`metrics` scores captions and files of captions, `plots` and `sparsity_report` draw runs,
`toy_relations` judges captions of the toy scenes.
"""
