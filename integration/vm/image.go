package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// uncompress takes the kernel proper out of a compressed one, as qemu's virtual firmware can also start that directly
// (PVH): under emulation, uncompressing takes longer than all the rest of the boot.
func uncompress(ctx context.Context, from, to string) error {
	image, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	payload, size, err := payloadOf(image)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	program, ok := compression(payload)
	if !ok {
		return fmt.Errorf("%s is compressed in an unknown way (it begins with %x)", from, payload[:min(6, len(payload))])
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := expand(ctx, program, payload, out); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if info, err := out.Stat(); err != nil || info.Size() != int64(size) {
		return errors.Join(fmt.Errorf("%s does not uncompress to %d bytes", from, size), err)
	}
	return out.Close()
}

// compressions are those of kernels and modules, by the bytes they begin with.
var compressions = []struct{ magic, program string }{
	{"\xfd7zXZ\x00", "xz"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"\x1f\x8b", "gzip"},
	{"\x02\x21\x4c\x18", "lz4"},
}

// compression tells the program that data is compressed with.
func compression(data []byte) (program string, ok bool) {
	for _, c := range compressions {
		if bytes.HasPrefix(data, []byte(c.magic)) {
			return c.program, true
		}
	}
	return "", false
}

// expand writes out what data is compressed from.
func expand(ctx context.Context, program string, data []byte, out io.Writer) error {
	if err := present(program); err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "-dc")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("uncompress with %s: %w: %s", program, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// payloadOf finds the compressed kernel in a bzImage by its setup header (the kernel's Documentation/arch/x86/boot.rst), and
// its uncompressed size, which follows it.
func payloadOf(image []byte) (payload []byte, size uint32, err error) {
	const sectors, magic, offset, length, header = 0x1f1, 0x202, 0x248, 0x24c, 0x250 // header: where it ends for us
	if len(image) < header || string(image[magic:magic+4]) != "HdrS" {
		return nil, 0, errors.New("not a Linux kernel image")
	}
	word := func(at int) int { return int(binary.LittleEndian.Uint32(image[at:])) }
	begin := (int(image[sectors])+1)*512 + word(offset)
	end := begin + word(length)
	if word(length) < 10 || end > len(image) {
		return nil, 0, errors.New("the image is cut off")
	}
	payload, size = image[begin:end], uint32(word(end-4))
	if program, _ := compression(payload); program != "gzip" {
		payload = payload[:len(payload)-4]
	}
	return payload, size, nil
}
