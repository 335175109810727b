package k8s

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// lockRetry is how often the lock of another process, which builds, is asked for again.
const lockRetry = time.Second

// Program is a program of Kubernetes, by its name below k8s.io/kubernetes/cmd.
type Program string

// The programs that the modules of the folder control are enough for.
const (
	APIServer         Program = "kube-apiserver"
	ControllerManager Program = "kube-controller-manager"
	Scheduler         Program = "kube-scheduler"
	Kubelet           Program = "kubelet"
	Proxy             Program = "kube-proxy"
	Kubectl           Program = "kubectl"
)

// Programs are all.
var Programs = []Program{APIServer, ControllerManager, Scheduler, Kubelet, Proxy, Kubectl}

// version finds the release in the module file.
var version = regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)`)

// Build returns the path of a program. It is built if the user's cache does not have that of this release, made from these
// modules by this Go, which takes minutes; progress is told. Several processes may call it at a time.
func Build(ctx context.Context, program Program, progress func(string)) (path string, err error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("finding the project: %w; run the test with the go command, inside the project", err)
	}
	source := filepath.Join(filepath.Dir(strings.TrimSpace(string(module))), "integration", "k8s", "control")
	release, sum, err := identify(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%s is kept in the user's cache directory: %w; set XDG_CACHE_HOME", program, err)
	}
	dir := filepath.Join(cache, "muslin", "k8s", release+"-"+sum)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return "", fmt.Errorf("wait for another process that builds programs of Kubernetes: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	path = filepath.Join(dir, string(program))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	progress(fmt.Sprintf("building %s %s, which takes some minutes and is kept in %s", program, release, dir))
	began := time.Now()
	// A program that was not told its version tells one that clients cannot read.
	// It takes all processors for minutes, and gives way to whatever else there is to do.
	cmd := exec.CommandContext(ctx, "nice", "-n", "10", "go", "build", "-C", source, "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -X k8s.io/component-base/version.gitVersion="+release, "-o", path+".new", "k8s.io/kubernetes/cmd/"+string(program))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s %s: %w\n%s\nthe modules are fetched from the Go proxy: is there one (GOPROXY)?", program, release, err, out)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", err
	}
	progress(fmt.Sprintf("built %s %s in %s", program, release, time.Since(began).Round(time.Second)))
	return path, nil
}

// identify returns the release, and a hash of all that the binary is made of.
func identify(source string) (release, sum string, err error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", "", err
		}
		h.Write(b)
		if m := version.FindSubmatch(b); m != nil && name == "go.mod" {
			release = string(m[1])
		}
	}
	if release == "" {
		return "", "", fmt.Errorf("%s/go.mod requires no k8s.io/kubernetes", source)
	}
	return release, hex.EncodeToString(h.Sum(nil)[:6]), nil
}
