package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// T is what Test wants of a *testing.T.
type T interface {
	Helper()
	Name() string
	Context() context.Context
	TempDir() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Test runs the suite of a package (as go build names it: "." is the caller's own) in a guest like c, whose Dir, Stdin, Stdout
// and Stderr are set: the test binary with the tags lab and secondkernel, in the package's directory, with -test.v and args
// (such as "-test.run=^TestTunnel"). The suite's lines are logged as they come. It must run at least one test to success; a
// failure fails t, and so does a skipped test: what is skipped here would be tested nowhere.
//
// The test that calls it is left out in the guest, so that a suite's own package can hold it.
func (c Config) Test(t T, pkg string, args ...string) {
	t.Helper()
	if Inside() {
		t.Fatalf("vm.Test(%q) was called in the second kernel itself", pkg)
	}
	dir, binary, err := build(t.Context(), pkg, t.TempDir())
	if err != nil {
		t.Fatalf("second kernel: %v", err)
	}
	caller, _, _ := strings.Cut(t.Name(), "/")
	args = append([]string{binary, "-test.v", "-test.skip=^" + regexp.QuoteMeta(caller) + "$"}, args...)
	var said bytes.Buffer
	log := &lines{logf: t.Logf}
	c.Dir, c.Stdin = dir, nil
	c.Stdout, c.Stderr = io.MultiWriter(&said, log), &lines{logf: t.Logf}
	code, err := Run(t.Context(), c, args...)
	if err != nil {
		t.Fatalf("%s: %v", pkg, err)
	}
	if err := judge(said.String(), code); err != nil {
		t.Fatalf("%s in the second kernel: %v", pkg, err)
	}
}

// tags of suites in the guest: with secondkernel come tests that need what only this kernel has, or that change it.
const tags = "lab,secondkernel"

// build makes the test binary and tells the package's directory.
func build(ctx context.Context, pkg, to string) (dir, binary string, err error) {
	dir, err = command(ctx, ".", "go", "list", "-tags", tags, "-f", "{{.Dir}}", pkg)
	if err != nil {
		return "", "", err
	}
	binary = filepath.Join(to, "suite.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-tags", tags, "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
	}
	if _, err := os.Stat(binary); err != nil {
		return "", "", fmt.Errorf("%s has no tests", pkg)
	}
	return strings.TrimSpace(dir), binary, nil
}

var (
	passed  = regexp.MustCompile(`(?m)^\s*--- PASS: `)
	skipped = regexp.MustCompile(`(?m)^\s*--- SKIP: (\S+)`)
	failed  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
)

// judge says what is wrong with a suite that said so and ended with this code.
func judge(said string, code int) error {
	names := func(list [][]string) string {
		var names []string
		for _, m := range list {
			names = append(names, m[1])
		}
		return strings.Join(names, ", ")
	}
	switch fails, skips := failed.FindAllStringSubmatch(said, -1), skipped.FindAllStringSubmatch(said, -1); {
	case len(fails) > 0:
		return fmt.Errorf("failed: %s", names(fails))
	case code != 0:
		return fmt.Errorf("the test binary ended with exit code %d", code)
	case len(skips) > 0:
		return fmt.Errorf("skipped, which proves nothing: %s", names(skips))
	case !passed.MatchString(said):
		return fmt.Errorf("no test ran")
	}
	return nil
}

// lines logs each line once it is whole. The last one of a test binary always is.
type lines struct {
	logf func(format string, args ...any)
	part []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.logf("%s", line)
		l.part = rest
	}
}
