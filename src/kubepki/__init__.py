"""A CA toolkit in the manner of cfssl: a library, a command (`cli`), and an Ansible action on top of both.

What others may build on:

- `spec` reads what should exist; `reconcile` plans and makes it so; `store` is the PKI directory.
- `rotation` replaces a CA in steps; `rules` with `verify` holds a set against the rules of Kubernetes and etcd.
- `survey`, `check` and `report` find certificates anywhere and judge them; `describe` puts them into words.
- `request`, `policy` and `signing` are cfssl's files and what it makes of them; `bundle`, `crl`, `certinfo` the rest.
- `keys`, `issue`, `names`, `durations`, `usages`: keys and certificates in memory, and the texts in specifications.

Times are aware datetimes in UTC, lengths of life timedeltas, files bytes. Everything that a user can mend is a
`KubepkiError` (`errors`), with `message`, `hint` and a `code` of cfssl's; texts that are no duration or name are
ValueErrors. Names with an underscore in front may change at any time.
"""
