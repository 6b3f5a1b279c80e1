// Command picture makes a picture of a terminal for the documentation: it reads text on
// standard input and writes a PNG to standard output.
//
//	sockpressure_exporter who tcp_memory | go run ./bench/picture --command='who tcp_memory' >docs/who.png
//
// It needs chromium.
package main

import (
	"context"
	"flag"
	"fmt"
	"html"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/chromedp/chromedp"
)

const page = `<!doctype html><meta charset="utf-8"><style>
body { margin: 0; background: #101418 }
pre { display: inline-block; margin: 0; padding: 20px 24px; color: #d8dee6; background: #101418; font: 15px/1.45 "DejaVu Sans Mono", monospace }
b { color: #fff }
</style><pre id="terminal">%s%s</pre>`

// patience bounds the start of the browser and everything it does.
const patience = time.Minute

func main() {
	command := flag.String("command", "", "the command that printed the text, to stand above it")
	flag.Parse()
	if err := draw(*command, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

func draw(command string, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	head := ""
	if command != "" {
		head = "# <b>" + html.EscapeString(command) + "</b>\n"
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.WindowSize(1800, 1000))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Navigate("data:text/html;charset=utf-8,"+url.PathEscape(fmt.Sprintf(page, head, html.EscapeString(string(text)))))); err != nil {
		return err
	}
	png, err := chromedp.Run(ctx, chromedp.Screenshot("#terminal"))
	if err != nil {
		return err
	}
	_, err = out.Write(png)
	return err
}
