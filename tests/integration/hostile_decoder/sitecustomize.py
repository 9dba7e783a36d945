"""A Pillow plug-in of the worst kind, put on the PYTHONPATH of worker processes by the fault tests.

It takes the place of the QOI decoder, claims files that begin with `HOSTILE `, and does what the next word says while
it "decodes": `die` kills the process, `crash` reads where there is no memory (as a bug in native code would),
`hoard` allocates without end, `hang` never returns, `fail` raises.
"""

import ctypes
import os
import signal
import threading

from PIL import Image, ImageFile, QoiImagePlugin


class HostileFile(ImageFile.ImageFile):
    format = QoiImagePlugin.QoiImageFile.format

    def _open(self):
        self.deed = self.fp.read(64).split()[1].decode()
        self._size, self._mode = (8, 8), "RGB"
        self.tile = []

    def load(self):
        if self.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.deed == "crash":
            ctypes.string_at(0)
        elif self.deed == "hoard":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 64)
        elif self.deed == "hang":
            threading.Event().wait()
        elif self.deed == "fail":
            raise RuntimeError("the hostile decoder fails")
        return Image.new("RGB", self._size).load()


Image.register_open("QOI", HostileFile, lambda prefix: prefix.startswith(b"HOSTILE "))
