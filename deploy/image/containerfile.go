package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// Containerfile is the image for those who build it with a container engine, in the root of the repository:
//
//	podman build -f deploy/image/Containerfile.node --build-arg VERSION=v0.1.0 -t muslin/node:v0.1.0 .
func Containerfile(image Image) []byte {
	var out bytes.Buffer
	line := func(format string, a ...any) { fmt.Fprintf(&out, format+"\n", a...) }
	line("# muslin/%s: %s.", image.Name, image.About)
	line("# Written from images.yaml by go test ./deploy/image -run Containerfile -update. Nothing of the first stage but the programs gets")
	line("# into the image; there is no shell in it.")
	line("FROM golang:1.26 AS build")
	line("WORKDIR /src")
	line("COPY . .")
	line("ARG VERSION")
	line(`ENV CGO_ENABLED=0 LDFLAGS="%s"`, ldflags("${VERSION}"))
	var files []Content
	dirs := map[string]bool{}
	for _, c := range image.Contents {
		switch {
		case c.Program != "":
			line("RUN go %s -o /out%s %s", strings.Join(flags(`"$LDFLAGS"`), " "), c.Path, c.Program)
		case c.Link != "":
			dir := path.Dir(c.Path)
			if !dirs[dir] {
				dirs[dir] = true
				line("RUN mkdir -p /out%s", strings.TrimSuffix(dir, "/"))
			}
			line("RUN ln -s %s /out%s", c.Link, c.Path)
		default:
			files = append(files, c)
		}
	}
	line("")
	line("FROM scratch")
	line("COPY --from=build /out/ /")
	for _, c := range files {
		line("COPY %s %s", c.File, c.Path)
	}
	line("USER %s", image.User)
	entrypoint, _ := json.Marshal(image.Entrypoint) // strings always have a form
	line("ENTRYPOINT %s", entrypoint)
	return out.Bytes()
}
