package image

import (
	"context"
	"errors"
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

// Archive builds the programs of an image of the repository and writes its archive into dir, whole or not at all. m says what it is
// made as; its Files follow from the contents. Programs are kept below dir.
func Archive(ctx context.Context, repository, dir string, i Image, m Made) (archive, digest string, err error) {
	m.Files = map[string]string{}
	programs, err := filepath.Abs(filepath.Join(dir, "programs"))
	if err != nil {
		return "", "", err
	}
	for _, c := range i.Contents {
		switch {
		case c.File != "":
			m.Files[c.Path] = filepath.Join(repository, c.File)
		case c.Program != "":
			if m.Files[c.Path], err = Build(ctx, repository, programs, c.Program, m.Tag, m.Arch); err != nil {
				return "", "", err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // there is no secret in it
		return "", "", err
	}
	archive = filepath.Join(dir, i.Name+".tar")
	f, err := os.Create(archive + ".new")
	if err != nil {
		return "", "", err
	}
	digest, err = Write(f, i, m)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", "", errors.Join(err, os.Remove(f.Name()))
	}
	return archive, digest, os.Rename(f.Name(), archive)
}
