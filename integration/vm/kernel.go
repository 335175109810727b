package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// kernel is one release of the distribution's kernel in the cache: vmlinux, busybox and lib/modules/<release>.
type kernel struct {
	dir     string
	release string
}

func (k kernel) image() string   { return filepath.Join(k.dir, "vmlinux") }
func (k kernel) busybox() string { return filepath.Join(k.dir, "busybox") }
func (k kernel) modules() string { return filepath.Join(k.dir, "lib/modules", k.release) }

// cacheDir holds one directory for each release, and the lock.
func cacheDir() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the second kernel's cache: %w", err)
	}
	return filepath.Join(user, "muslin", "vm"), nil
}

// Release is the release of the kernel that Run boots, as uname -r shows it in the guest. Without one in the cache it is
// fetched first; log takes a line on that.
func Release(ctx context.Context, log io.Writer) (string, error) {
	k, err := cachedKernel(ctx, log)
	return k.release, err
}

// Update fetches the kernel that the distribution ships now, if the cache lacks it, and makes it the one that Run boots.
func Update(ctx context.Context, log io.Writer) (release string, err error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lock(ctx, cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	k, err := fetch(ctx, cache, log)
	return k.release, err
}

// cachedKernel is the newest kernel of the cache. If there is none it fetches the distribution's.
func cachedKernel(ctx context.Context, log io.Writer) (kernel, error) {
	cache, err := cacheDir()
	if err != nil {
		return kernel{}, err
	}
	if k, ok := newest(cache); ok {
		return k, nil
	}
	unlock, err := lock(ctx, cache)
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	if k, ok := newest(cache); ok { // made while we waited
		return k, nil
	}
	return fetch(ctx, cache, log)
}

// newest finds the kernel that was put last. What is half done has a name that begins with a dot.
func newest(cache string) (k kernel, ok bool) {
	entries, _ := os.ReadDir(cache) // no directory is no kernel
	var at time.Time
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || strings.HasPrefix(e.Name(), ".") || info.ModTime().Before(at) {
			continue
		}
		k, ok, at = kernel{dir: filepath.Join(cache, e.Name()), release: e.Name()}, true, info.ModTime()
	}
	return k, ok
}

// lock makes sure that one process at a time changes the cache.
func lock(ctx context.Context, cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("the second kernel's cache: %w", err)
	}
	l := flock.New(filepath.Join(cache, ".lock"))
	if _, err := l.TryLockContext(ctx, lockRetry); err != nil {
		return nil, fmt.Errorf("wait for another process that fetches the second kernel: %w", err)
	}
	return func() { _ = l.Close() }, nil
}

// lockRetry is how often a lock that another process holds is asked for again: it holds it for seconds.
const lockRetry = 100 * time.Millisecond

// packageOf tells where a program comes from.
var packageOf = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"modprobe":           "kmod",
	"depmod":             "kmod",
	"apt-get":            "apt (the second kernel is Debian's or Ubuntu's, and fetched with apt)",
	"apt-cache":          "apt (the second kernel is Debian's or Ubuntu's, and fetched with apt)",
	"dpkg-deb":           "dpkg",
	"xz":                 "xz-utils",
	"zstd":               "zstd",
	"gzip":               "gzip",
	"lz4":                "lz4",
}

// present makes sure that the programs are there.
func present(programs ...string) error {
	for _, p := range programs {
		if _, err := find(p); err != nil {
			return fmt.Errorf("the second kernel needs %s, which is missing: install the package %s", p, packageOf[p])
		}
	}
	return nil
}

// find looks for a program also where an ordinary user's PATH does not.
func find(program string) (string, error) {
	file, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			file, err = exec.LookPath(filepath.Join(dir, program))
		}
	}
	return file, err
}

// command runs a program and returns its output, or what it said in an error.
func command(ctx context.Context, dir, program string, args ...string) (string, error) {
	file, err := find(program)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C") // apt translates what is read here
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.Join(strings.Fields(said.String()), " "))
	}
	return out.String(), nil
}
