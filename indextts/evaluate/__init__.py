"""How good a voice is, measured without listeners: ``indextts evaluate``.

- :mod:`~indextts.evaluate.words`: what a speech recogniser hears (pocketsphinx).
- :mod:`~indextts.evaluate.likeness`: whose voice it is (resemblyzer), and how clean (DNSMOS).
- :mod:`~indextts.evaluate.sound`: endings, lengths, clicks; :mod:`~indextts.evaluate.prosody`: pitch, rate, loudness, tilt.

The judges come with ``pip install 'indextts2-lab[train]'`` and are imported on first use.
"""
