"""An encrypted file under a passphrase, written and read as a stream.

Layout: the magic, the salt (16 bytes), a verifier of the passphrase (16 bytes), then blocks of a 4-byte length and
that many bytes. Blocks are AES-256-GCM; the nonce is the number of the block with a last byte that is 1 for the last
block only, so blocks can neither be swapped nor cut off (the STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizar,
2015). Everything before the blocks is authenticated with each of them. Key and verifier come from scrypt (RFC 7914).
"""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from kubewright.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_MAGIC = b"kubewright backup 1\n"
_SALT = _VERIFIER = 16
_BLOCK = 1 << 20
_TAG = 16
# 128 MiB and some tenths of a second for each passphrase that somebody tries.
_COST = 2**17


class DamagedError(UserError):
    """The file is not what was written."""


def _derive(passphrase: str, salt: bytes) -> tuple[AESGCM, bytes]:
    material = Scrypt(salt=salt, length=32 + _VERIFIER, n=_COST, r=8, p=1).derive(passphrase.encode())
    return AESGCM(material[:32]), material[32:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class Writer(io.RawIOBase):
    """Encrypts what is written to it into `target`; `close` writes the last block, and leaves `target` open."""

    def __init__(self, target: IO[bytes], passphrase: str) -> None:
        super().__init__()
        salt = os.urandom(_SALT)
        self._cipher, verifier = _derive(passphrase, salt)
        self._header = _MAGIC + salt + verifier
        self._target = target
        self._held = bytearray()
        self._number = 0
        target.write(self._header)

    def writable(self) -> bool:
        """Say that it is."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Take bytes; all of them."""
        taken = memoryview(data)
        self._held += taken
        while len(self._held) > _BLOCK:
            self._seal(bytes(self._held[:_BLOCK]), last=False)
            del self._held[:_BLOCK]
        return taken.nbytes

    def _seal(self, block: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._number, last=last), block, self._header)
        self._target.write(len(sealed).to_bytes(4, "big") + sealed)
        self._number += 1

    def finish(self) -> None:
        """Write the last block. Without it, as after an exception, the file is not a whole one."""
        self._seal(bytes(self._held), last=True)
        self._held.clear()


class Reader(io.RawIOBase):
    """Decrypts what `Writer` wrote. UserError for another passphrase, DamagedError as soon as a block is not whole."""

    def __init__(self, source: IO[bytes], passphrase: str, name: str) -> None:
        super().__init__()
        self._source, self._name = source, name
        self._header = source.read(len(_MAGIC) + _SALT + _VERIFIER)
        if not self._header.startswith(_MAGIC):
            raise DamagedError(f"{name} is not a backup of kubewright", "give the path of a file that backup.yml wrote")
        salt = self._header[len(_MAGIC) : -_VERIFIER]
        if len(salt) != _SALT:
            raise self._damage()
        self._cipher, verifier = _derive(passphrase, salt)
        if not constant_time.bytes_eq(verifier, self._header[-_VERIFIER:]):
            raise UserError(
                f"the passphrase is not that of {name}", "give the one that it was written with; nothing has been done"
            )
        self._number = 0
        self._plain = memoryview(b"")
        self._ended = False

    def _damage(self) -> DamagedError:
        return DamagedError(
            f"{self._name} is damaged: it was altered or cut off; nothing has been done", "take another backup"
        )

    def readable(self) -> bool:
        """Say that it is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a part of the buffer; 0 at the end."""
        while not self._plain and not self._ended:
            self._next()
        room = memoryview(buffer).cast("B")
        count = min(len(room), len(self._plain))
        room[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _next(self) -> None:
        length = int.from_bytes(self._source.read(4), "big")
        if not _TAG <= length <= _BLOCK + _TAG:
            raise self._damage()
        sealed = self._source.read(length)
        for last in (False, True):
            try:
                self._plain = memoryview(self._cipher.decrypt(_nonce(self._number, last=last), sealed, self._header))
            except InvalidTag:
                continue
            self._ended = last
            self._number += 1
            if last and self._source.read(1):
                raise self._damage()
            return
        raise self._damage()
