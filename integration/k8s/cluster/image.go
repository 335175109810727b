package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/muslin-net/muslin/deploy/image"
)

// WorkloadImage is the image that pause and all workloads of tests are made from: its entrypoint is the program of the folder
// workload.
const WorkloadImage = workloadPrefix + "/" + workloadName + ":" + workloadTag

const (
	workloadPrefix = "muslin"
	workloadName   = "workload"
	workloadTag    = "test"
	workloadPath   = "/workload"
)

// workload is what is in it.
var workload = image.Image{
	Name: workloadName, About: "what runs in the pods of tests", User: "0:0", Entrypoint: []string{workloadPath},
	Contents: []image.Content{{Path: workloadPath, Program: "./integration/k8s/workload"}, {Path: "/bin/httpd", Link: workloadPath}, {Path: "/bin/nc", Link: workloadPath}},
}

// writeWorkloadImage builds the program of workloads, and puts an archive with an image of it in place, in a directory that is kept.
// The go command knows best whether anything has changed.
func writeWorkloadImage(ctx context.Context, dir string) (archive string, err error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("finding the project: %w; run it inside the project, with the go command in the PATH", err)
	}
	program, err := image.Build(ctx, filepath.Dir(strings.TrimSpace(string(module))), dir, workload.Contents[0].Program, workloadTag, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	return archiveWorkload(program, dir)
}

// archiveWorkload writes the archive.
func archiveWorkload(program, dir string) (archive string, err error) {
	next, err := os.CreateTemp(dir, "workload") // others may read, or do the same
	if err != nil {
		return "", err
	}
	_, err = image.Write(next, workload, image.Made{Prefix: workloadPrefix, Tag: workloadTag, Arch: runtime.GOARCH, Files: map[string]string{workloadPath: program}})
	archive = filepath.Join(dir, "workload.tar")
	return archive, errors.Join(err, next.Close(), os.Rename(next.Name(), archive))
}
