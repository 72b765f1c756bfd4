// Browsers start no worker for a page that was opened from the disk. The search runs in a worker, so for such pages
// this one runs the worker's script in a hidden frame of the page. On a server it changes nothing.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.tell(this, data);
      this.load(String(url)).then(() => {
        this.ready = true;
        for (const data of this.waiting) this.tell(this.inside, data);
      });
    }

    load(url) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script");
        script.src = url;
        script.onload = done;
        script.onerror = () => failed(new Error(`${url} could not be loaded.`));
        this.inside.document.body.append(script);
      });
    }

    tell(target, data) {
      const event = new MessageEvent("message", { data });
      target.dispatchEvent(event);
      const handler = target.onmessage;
      if (typeof handler === "function") handler.call(target, event);
    }

    postMessage(data) {
      if (this.ready) this.tell(this.inside, data);
      else this.waiting.push(data);
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
