package vm

import (
	"bytes"
	"fmt"
)

// archive is an initial file system in the "newc" format of cpio, which the kernel unpacks (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst). It has no times, owners or links.
type archive struct {
	bytes.Buffer
	inode int
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
)

func (a *archive) dir(name string) { a.entry(name, modeDir, nil) }

func (a *archive) file(name string, content []byte) { a.entry(name, modeFile, content) }

// end closes the archive.
func (a *archive) end() { a.entry("TRAILER!!!", 0, nil) }

func (a *archive) entry(name string, mode int, content []byte) {
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.inode, mode,
		0, 0, 1, 0, // owner, group, links, time
		len(content),
		0, 0, 0, 0, // device numbers
		len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.align()
	a.Write(content)
	a.align()
}

func (a *archive) align() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
