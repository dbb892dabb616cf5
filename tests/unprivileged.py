"""Root may write where nobody may; scripts that begin with `AS_A_USER` are like those of other users."""

AS_A_USER = """
import ctypes, os
if os.getuid() == 0:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for word in (0, 1):
        data[word] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of the effective and the permitted
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
"""
