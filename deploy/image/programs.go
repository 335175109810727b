package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// versionVariable is what the linker tells programs their version by.
const versionVariable = "github.com/muslin-net/muslin/internal/daemon.version"

// flags are those of go build, but for the output and the package: nothing of the machine gets into a program.
func flags(ldflags string) []string {
	return []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=" + ldflags}
}

func ldflags(version string) string { return "-s -w -X " + versionVariable + "=" + version }

// Build builds a program of the repository, for Linux on an architecture as Go names it, and returns its path below dir.
func Build(ctx context.Context, repository, dir, program, version, arch string) (string, error) {
	path := filepath.Join(dir, arch, strings.ReplaceAll(strings.TrimPrefix(program, "./"), "/", "_"))
	cmd := exec.CommandContext(ctx, "go", append(flags(ldflags(version)), "-o", path, program)...)
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
	}
	return path, nil
}
