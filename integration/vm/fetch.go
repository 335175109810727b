package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// distributions are those whose kernel can be the second one, each with the package that stands for the newest. They are
// asked for in this order.
var distributions = []struct{ name, meta string }{
	{"Debian", "linux-image-amd64"},
	{"Ubuntu", "linux-image-generic"},
}

// parts begin the names of the packages that a kernel may be spread over; its release ends them. Debian's image holds all.
// Ubuntu's modules are apart, and up to 25.04 most drivers are in a third package. Which of them a release has is seen from
// what the meta package needs, directly or not.
var parts = []string{"linux-image-", "linux-modules-", "linux-modules-extra-"}

// source is a kernel as apt knows it.
type source struct {
	distribution string
	release      string   // as uname -r shows it: "6.1.0-56-amd64", "6.8.0-136-generic"
	packages     []string // sorted
}

// fetch downloads the distribution's kernel and a static busybox with apt, and unpacks them. The caller holds the lock.
func fetch(ctx context.Context, cache string, log io.Writer) (k kernel, err error) {
	if err := present("apt-get", "apt-cache", "dpkg-deb", "depmod"); err != nil {
		return kernel{}, err
	}
	src, err := findSource(ctx)
	if err != nil {
		return kernel{}, err
	}
	k = kernel{release: src.release}
	k.dir = filepath.Join(cache, k.release)
	if _, err := os.Stat(k.dir); err == nil {
		now := time.Now()
		return k, os.Chtimes(k.dir, now, now)
	}
	leftovers, _ := filepath.Glob(filepath.Join(cache, ".new-*"))
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return kernel{}, err
		}
	}
	fmt.Fprintf(log, "vm: fetching %s's %s, once, into %s\n", src.distribution, strings.Join(src.packages, ", "), cache)
	work, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return kernel{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := src.unpack(ctx, work); err != nil {
		return kernel{}, fmt.Errorf("fetch %s's kernel: %w", src.distribution, err)
	}
	return k, os.Rename(filepath.Join(work, "done"), k.dir)
}

// findSource asks apt for the newest kernel of the first distribution it knows.
func findSource(ctx context.Context) (source, error) {
	if runtime.GOARCH != "amd64" {
		return source{}, errors.New("the second kernel runs this machine's programs, and is made for amd64 machines only so far")
	}
	var names []string
	var failed error
	for _, d := range distributions {
		names = append(names, fmt.Sprintf("%s's %s", d.name, d.meta))
		said, err := command(ctx, "/", "apt-cache", "depends", "--recurse", "--important", d.meta)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if release, packages, ok := kernelOf(said, d.meta); ok {
			return source{distribution: d.name, release: release, packages: packages}, nil
		}
	}
	return source{}, errors.Join(
		fmt.Errorf("apt knows no kernel, neither %s: run apt-get update, on a Debian or Ubuntu", strings.Join(names, " nor ")), failed)
}

// kernelOf reads what apt-cache says of all that a meta package needs: each package's name, and below it, indented, its
// own dependencies.
func kernelOf(said, meta string) (release string, packages []string, ok bool) {
	known, of := map[string]bool{}, ""
	for line := range strings.Lines(said) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(line, " ") {
			of = line
			known[of] = true
			continue
		}
		if _, name, found := strings.Cut(line, "Depends: "); found && of == meta && release == "" {
			if r, found := strings.CutPrefix(name, "linux-image-"); found {
				release, ok = r, true
			}
		}
	}
	maps.DeleteFunc(known, func(name string, _ bool) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return name == part+release })
	})
	return release, slices.Sorted(maps.Keys(known)), ok
}

// unpack fills work/done. A kernel is there when its directory is; so that is moved to its place as the last step.
func (s source) unpack(ctx context.Context, work string) error {
	// what root downloads need not be readable by apt's own user
	download := append([]string{"download", "-q", "-o", "APT::Sandbox::User=", "busybox-static"}, s.packages...)
	if _, err := command(ctx, work, "apt-get", download...); err != nil {
		return fmt.Errorf("%w; if a package is not found, run apt-get update first", err)
	}
	packages, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	for _, deb := range packages {
		if _, err := command(ctx, work, "dpkg-deb", "-x", deb, "all"); err != nil {
			return err
		}
	}
	done := filepath.Join(work, "done")
	if err := os.MkdirAll(filepath.Join(done, "lib/modules"), 0o755); err != nil {
		return err
	}
	for _, part := range []struct{ to, from string }{
		{"busybox", "all/{,usr/}bin/busybox"},
		{"lib/modules/" + s.release, "all/{,usr/}lib/modules/" + s.release},
	} {
		if err := s.move(work, part.from, filepath.Join(done, part.to)); err != nil {
			return err
		}
	}
	if err := uncompress(ctx, filepath.Join(work, "all/boot/vmlinuz-"+s.release), filepath.Join(done, "vmlinux")); err != nil {
		return err
	}
	_, err := command(ctx, work, "depmod", "-b", done, s.release)
	return err
}

// move moves what lies at one of two places: releases differ in whether a path begins with usr.
func (s source) move(dir, from, to string) error {
	var err error
	for _, usr := range []string{"usr/", ""} {
		if err = os.Rename(filepath.Join(dir, strings.ReplaceAll(from, "{,usr/}", usr)), to); err == nil {
			return nil
		}
	}
	return fmt.Errorf("the packages are not laid out as %s's are: %w", s.distribution, err)
}
