package vm

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	const dep = `kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/9p/9pnet.ko.xz:
kernel/a/with-dash.ko:
`
	order, err := loadOrder(dep, "kernel/fs/overlayfs/overlay.ko\n", "9pnet_virtio", "9p", "overlay", "with_dash")
	require.NoError(t, err)
	assert.Equal(t, []string{
		"kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko", "kernel/net/9p/9pnet.ko.xz",
		"kernel/net/9p/9pnet_virtio.ko.xz", "kernel/fs/netfs/netfs.ko.xz", "kernel/fs/9p/9p.ko.xz", "kernel/a/with-dash.ko",
	}, order)
	_, err = loadOrder(dep, "", "ipip")
	assert.EqualError(t, err, "the kernel has no module ipip")
}

// The layout is that of the kernel's buffer-format.rst: fields of 8 hexadecimal digits, name and content padded to 4.
func TestArchive(t *testing.T) {
	var a archive
	a.file("ab", []byte("hello"))
	a.end()
	header := "070701" + strings.Join([]string{
		"00000001", "000081ed", "00000000", "00000000", "00000001", "00000000", "00000005", // inode, mode, ..., links, time, size
		"00000000", "00000000", "00000000", "00000000", "00000003", "00000000", // ..., size of the name
	}, "")
	want := header + "ab\x00" + "\x00\x00\x00" + "hello" + "\x00\x00\x00"
	assert.Equal(t, want, a.String()[:len(want)])
	assert.Contains(t, a.String()[len(want):], "TRAILER!!!\x00")
	assert.Zero(t, a.Len()%4)
}

func TestAnyWordIsOneWordOfTheShell(t *testing.T) {
	for _, word := range []string{"", "a b", "it's", "$HOME `x` \\ \"", "line\nline", "-n", "*"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(word)).Output()
		require.NoError(t, err)
		assert.Equal(t, word, string(out))
	}
}

func TestPayloadOfAnImage(t *testing.T) {
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	image[0x1f1] = 3
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], 20)
	copy(image[4*512+16:], "0123456789abcdef")
	binary.LittleEndian.PutUint32(image[4*512+16+16:], 99)
	payload, size, err := payloadOf(image)
	require.NoError(t, err)
	assert.Equal(t, "0123456789abcdef", string(payload))
	assert.EqualValues(t, 99, size)
	_, _, err = payloadOf(image[:4*512+20])
	require.EqualError(t, err, "the image is cut off")
	_, _, err = payloadOf([]byte("MZ"))
	require.EqualError(t, err, "not a Linux kernel image")
}

// What apt-cache says of Debian 12's and of Ubuntu 24.04's meta package, and of one that it knows only the name of.
func TestWhichPackagesAKernelIs(t *testing.T) {
	for meta, c := range map[string]struct {
		said, release string
		packages      []string
	}{
		"linux-image-amd64": {
			said: `linux-image-amd64
  Depends: linux-image-6.1.0-56-amd64
linux-image-6.1.0-56-amd64
  Depends: kmod
 |Depends: initramfs-tools
  Depends: <linux-initramfs-tool>
kmod
linux-base
`,
			release: "6.1.0-56-amd64", packages: []string{"linux-image-6.1.0-56-amd64"},
		},
		"linux-image-generic": {
			said: `linux-image-generic
  Depends: linux-image-6.8.0-136-generic
  Depends: linux-modules-extra-6.8.0-136-generic
  Depends: linux-firmware
linux-image-6.8.0-136-generic
  Depends: linux-modules-6.8.0-136-generic
linux-modules-extra-6.8.0-136-generic
  Depends: linux-modules-6.8.0-136-generic
linux-modules-6.8.0-136-generic
linux-modules-6.8.0-135-generic
linux-firmware
`,
			release: "6.8.0-136-generic", packages: []string{
				"linux-image-6.8.0-136-generic", "linux-modules-6.8.0-136-generic", "linux-modules-extra-6.8.0-136-generic",
			},
		},
		"linux-image-virtual": {said: "<linux-image-virtual>\n"},
	} {
		release, packages, ok := kernelOf(c.said, meta)
		assert.Equal(t, c.release != "", ok)
		assert.Equal(t, c.release, release)
		assert.Equal(t, c.packages, packages)
	}
}

func FuzzPayloadOf(f *testing.F) {
	image := make([]byte, 0x260)
	copy(image[0x202:], "HdrS")
	f.Add(image)
	f.Fuzz(func(_ *testing.T, image []byte) { _, _, _ = payloadOf(image) })
}

func TestASuiteThatProvesNothingFails(t *testing.T) {
	for _, c := range []struct {
		said string
		code int
		want string
	}{
		{"=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", 0, ""},
		{"--- PASS: TestA (0.00s)\n--- FAIL: TestB (0.00s)\n    --- FAIL: TestB/x (0.00s)\n", 1, "failed: TestB, TestB/x"},
		{"--- PASS: TestA (0.00s)\n    --- SKIP: TestB/x (0.00s)\nPASS\n", 0, "skipped, which proves nothing: TestB/x"},
		{"testing: warning: no tests to run\nPASS\n", 0, "no test ran"},
		{"--- PASS: TestA (0.00s)\npanic: oh\n", 2, "the test binary ended with exit code 2"},
	} {
		err := judge(c.said, c.code)
		if c.want == "" {
			require.NoError(t, err, c.said)
			continue
		}
		require.EqualError(t, err, c.want)
	}
}

func TestTheConsoleKeepsItsEnd(t *testing.T) {
	var c console
	_, _ = c.Write(bytes.Repeat([]byte("old line\n"), consoleKept/5))
	_, _ = c.Write([]byte("last line \r\n\r\n"))
	text := c.quoted("title:")
	assert.LessOrEqual(t, len(c.text), consoleKept)
	assert.True(t, strings.HasPrefix(text, "\ntitle:\n    "))
	assert.True(t, strings.HasSuffix(text, "\n    last line"))
	assert.Empty(t, (&console{}).quoted("title:"))
}

func TestTheNewestKernelOfTheCache(t *testing.T) {
	cache := t.TempDir()
	_, ok := newest(cache)
	assert.False(t, ok)
	_, ok = newest(filepath.Join(cache, "missing"))
	assert.False(t, ok)
	now := time.Now()
	for i, name := range []string{"6.12", "6.1", ".new-1"} { // half done is newest, and does not count
		require.NoError(t, os.Mkdir(filepath.Join(cache, name), 0o755))
		at := now.Add(time.Duration(i) * time.Second)
		require.NoError(t, os.Chtimes(filepath.Join(cache, name), at, at))
	}
	k, ok := newest(cache)
	assert.True(t, ok)
	assert.Equal(t, "6.1", k.release)
}

func TestWhatCannotWorkIsSaidFirst(t *testing.T) {
	_, err := Run(t.Context(), Config{})
	require.EqualError(t, err, "second kernel: no command")
	_, err = Run(t.Context(), Config{Writable: []string{"/nowhere"}}, "true")
	require.EqualError(t, err, "second kernel: writable directory /nowhere: no such directory")
	t.Setenv("PATH", t.TempDir())
	_, err = Run(t.Context(), Config{}, "true")
	require.EqualError(t, err, "the second kernel needs qemu-system-x86_64, which is missing: install the package qemu-system-x86")
}
