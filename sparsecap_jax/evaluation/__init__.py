"""Caption metrics, reports and pictures.

`metrics` scores captions and files of captions, `plots` and `sparsity_report` draw runs,
`collected` is the table of many models and `collection_plots` its charts, `pages` makes pages for a
browser, `toy_relations` judges captions of the toy scenes.
"""
