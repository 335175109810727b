//go:build lab

package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// layout is how a distribution packs its kernel.
type layout struct {
	meta    string
	flavour string            // ends the release
	needs   []string          // of the meta package, %s being the release
	files   map[string]string // kind of file: the package it is in, %s being the release
	also    map[string]string // package: what it needs beside
	usr     string            // "usr/" where /lib and /bin are packed below it
	image   []string          // the command that compresses the kernel
	modules []string          // the command that compresses modules, nil for none
	suffix  string            // of modules
}

// kinds of files
const (
	theImage  = "image"
	bootFiles = "modules to boot"
	drivers   = "drivers"
)

var (
	xz         = []string{"xz", "-0", "--check=crc32", "-c"}
	zstandard  = []string{"zstd", "-q", "-1", "-c"}
	ubuntuDeps = []string{"linux-image-%s", "linux-modules-extra-%s", "linux-firmware"}
	ubuntuAlso = map[string]string{
		"linux-image-%s":         "kmod, linux-modules-%s",
		"linux-modules-extra-%s": "linux-modules-%s, wireless-regdb",
	}
	ubuntuFiles = map[string]string{
		theImage: "linux-image-%s", bootFiles: "linux-modules-%s", drivers: "linux-modules-extra-%s",
	}
)

// layouts are those that the kernel of the cache is packed in again: what cannot be fetched on this machine, whose apt is
// that of one distribution.
var layouts = map[string]layout{
	"Debian 13": {
		meta: "linux-image-amd64", flavour: "amd64", needs: []string{"linux-image-%s"}, usr: "usr/",
		files: map[string]string{theImage: "linux-image-%s", bootFiles: "linux-image-%s", drivers: "linux-image-%s"},
		image: xz, modules: xz, suffix: ".ko.xz",
	},
	"Ubuntu 22.04": {
		meta: "linux-image-generic", flavour: "generic", needs: ubuntuDeps, also: ubuntuAlso, files: ubuntuFiles,
		image: zstandard, suffix: ".ko",
	},
	"Ubuntu 24.04": {
		meta: "linux-image-generic", flavour: "generic", needs: ubuntuDeps, also: ubuntuAlso, files: ubuntuFiles,
		image: zstandard, modules: zstandard, suffix: ".ko.zst",
	},
	"Ubuntu 25.10": {
		meta: "linux-image-generic", flavour: "generic", needs: []string{"linux-image-%s", "linux-modules-%s", "linux-firmware"},
		also: ubuntuAlso, usr: "usr/",
		files: map[string]string{theImage: "linux-image-%s", bootFiles: "linux-modules-%s", drivers: "linux-modules-%s"},
		image: zstandard, modules: zstandard, suffix: ".ko.zst",
	},
}

// TestKernelOfEachDistribution fetches a kernel from an archive like each distribution's, with apt, and boots it.
func TestKernelOfEachDistribution(t *testing.T) {
	k, err := cachedKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			version, _, _ := strings.Cut(k.release, "-")
			release := version + "-31-" + l.flavour
			repository := t.TempDir()
			packages := l.publish(t, k, release, repository)
			onlyFrom(t, repository)
			t.Setenv("XDG_CACHE_HOME", t.TempDir())

			var log, out bytes.Buffer
			fetched, err := Release(t.Context(), &log)
			require.NoError(t, err)
			assert.Equal(t, release, fetched)
			distribution, _, _ := strings.Cut(name, " ")
			assert.Contains(t, log.String(), "vm: fetching "+distribution+"'s "+strings.Join(packages, ", ")+", once,")

			code, err := Run(t.Context(), Config{Memory: 512, Stdout: &out, Stderr: os.Stderr}, "sh", "-ec", `uname -r
cd /lib/modules/*; find . -name 'ipip.*'
ip link add name new0 type ipip local 192.0.2.1 remote 192.0.2.2; ls -d /sys/module/ipip`)
			require.NoError(t, err)
			assert.Zero(t, code)
			assert.Equal(t, release+"\n./kernel/net/ipv4/ipip"+l.suffix+"\n/sys/module/ipip\n", out.String())
		})
	}
}

func TestNoKernelInTheArchive(t *testing.T) {
	repository := t.TempDir()
	publish(t, repository, "busybox-static", "", nil)
	onlyFrom(t, repository)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	_, err := Release(t.Context(), io.Discard)
	require.ErrorContains(t, err,
		"apt knows no kernel, neither Debian's linux-image-amd64 nor Ubuntu's linux-image-generic: run apt-get update")
}

// TestEveryCompression takes a kernel out of an image that is compressed in each way.
func TestEveryCompression(t *testing.T) {
	content := bytes.Repeat([]byte("the kernel proper, "), 1000)
	for _, compress := range [][]string{xz, zstandard, {"gzip", "-c"}, {"lz4", "-q", "-l", "-c"}} {
		t.Run(compress[0], func(t *testing.T) {
			dir := t.TempDir()
			image, to := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "vmlinux")
			write(t, image, bootImage(t, compress, content))
			require.NoError(t, uncompress(t.Context(), image, to))
			got, err := os.ReadFile(to)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(content, got))
		})
	}
}

// publish packs a kernel's image and the modules it needs to boot, with ipip and what that needs, and names the packages,
// sorted.
func (l layout) publish(t *testing.T, k kernel, release, repository string) (packages []string) {
	t.Helper()
	of := func(pattern string) string { return strings.ReplaceAll(pattern, "%s", release) }
	trees := map[string]string{}
	add := func(kind, file string, content []byte) {
		pkg := of(l.files[kind])
		if trees[pkg] == "" {
			trees[pkg] = t.TempDir()
			packages = append(packages, pkg)
		}
		write(t, filepath.Join(trees[pkg], file), content)
	}
	vmlinux, err := os.ReadFile(k.image())
	require.NoError(t, err)
	add(theImage, "boot/vmlinuz-"+release, bootImage(t, l.image, renamed(t, vmlinux, k.release, release)))
	lists := l.usr + "lib/modules/" + release + "/"
	for _, list := range []string{"modules.builtin", "modules.order"} {
		add(bootFiles, lists+list, read(t, filepath.Join(k.modules(), list)))
	}
	boot, err := k.bootOrder()
	require.NoError(t, err)
	more, err := loadOrder(string(read(t, filepath.Join(k.modules(), "modules.dep"))), "", "ipip")
	require.NoError(t, err)
	for _, file := range slices.Concat(boot, more) {
		kind := bootFiles
		if !slices.Contains(boot, file) {
			kind = drivers
		}
		content, err := readModule(t.Context(), filepath.Join(k.modules(), file))
		require.NoError(t, err)
		if l.modules != nil {
			content = filter(t, l.modules, content)
		}
		add(kind, lists+filepath.Dir(file)+"/"+moduleName(file)+l.suffix, content)
	}
	for pkg, tree := range trees {
		publish(t, repository, pkg, of(l.also[strings.ReplaceAll(pkg, release, "%s")]), map[string]string{tree: "."})
	}
	publish(t, repository, l.meta, of(strings.Join(l.needs, ", ")), nil)
	publish(t, repository, "busybox-static", "", map[string]string{k.busybox(): l.usr + "bin/busybox"})
	slices.Sort(packages)
	return packages
}

// publish puts a package into an archive that needs others, and holds files or whole directories at the places given.
func publish(t *testing.T, repository, name, needs string, content map[string]string) {
	t.Helper()
	tree := t.TempDir()
	for from, to := range content {
		to = filepath.Join(tree, to)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		if fi, err := os.Stat(from); err == nil && fi.IsDir() {
			from += "/."
		}
		run(t, "cp", "-a", from, to)
	}
	control := "Package: " + name + "\nVersion: 1\nArchitecture: amd64\nMaintainer: a test <root@localhost>\nDescription: a test\n"
	if needs != "" {
		control += "Depends: " + needs + "\n"
	}
	write(t, filepath.Join(tree, "DEBIAN/control"), []byte(control))
	require.NoError(t, os.Chmod(tree, 0o755))
	deb := filepath.Join(repository, name+"_1_amd64.deb")
	run(t, "dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb)
	packed := read(t, deb)
	index, err := os.OpenFile(filepath.Join(repository, "Packages"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	defer index.Close()
	_, err = fmt.Fprintf(index, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n",
		control, filepath.Base(deb), len(packed), sha256.Sum256(packed))
	require.NoError(t, err)
}

// onlyFrom makes apt know nothing but an archive in a directory. The machine's own lists and settings stay as they are.
func onlyFrom(t *testing.T, repository string) {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"etc", "state/lists/partial", "cache/archives/partial"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	write(t, filepath.Join(dir, "status"), nil)
	write(t, filepath.Join(dir, "etc/sources.list"), []byte("deb [trusted=yes] file:"+repository+" ./\n"))
	config := filepath.Join(dir, "apt.conf")
	write(t, config, fmt.Appendf(nil, `Dir::Etc "%[1]s/etc"; Dir::Cache "%[1]s/cache";
Dir::State "%[1]s/state"; Dir::State::status "%[1]s/status";
APT::Sandbox::User "root"; APT::Architecture "amd64";
`, dir))
	t.Setenv("APT_CONFIG", config)
	run(t, "apt-get", "update", "-q")
}

// bootImage makes a vmlinuz of a kernel, as far as the setup header describes it: the code before and in it is missing.
func bootImage(t *testing.T, compress []string, kernel []byte) []byte {
	t.Helper()
	payload := filter(t, compress, kernel)
	if compress[0] != "gzip" { // which ends with the size itself
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(kernel)))
	}
	const setup = 2 * 512
	image := make([]byte, setup, setup+len(payload))
	image[0x1f1] = setup/512 - 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

// renamed changes what uname -r will say in a kernel. Modules still fit: they compare another string.
func renamed(t *testing.T, vmlinux []byte, from, to string) []byte {
	t.Helper()
	field := func(s string) string { return s + strings.Repeat("\x00", 65-len(s)) } // of struct new_utsname
	before := field("Linux") + field("(none)")
	require.Contains(t, string(vmlinux), before+field(from))
	return bytes.ReplaceAll(vmlinux, []byte(before+field(from)), []byte(before+field(to)))
}

// filter is what a program makes of its input.
func filter(t *testing.T, program []string, input []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program[0], program[1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, os.Stderr
	require.NoError(t, cmd.Run(), program)
	return out.Bytes()
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	_, err := command(context.WithoutCancel(t.Context()), "/", program, args...)
	require.NoError(t, err)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return content
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, content, 0o644))
}
